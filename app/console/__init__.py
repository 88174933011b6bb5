"""The console in the browser, at /ui: pages over the same services, guards and rules as the API."""
