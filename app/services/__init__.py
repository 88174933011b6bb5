"""What the gateway does; knows neither HTTP side."""
