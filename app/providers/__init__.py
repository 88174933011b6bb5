"""How each upstream is spoken to; one file each, strangers to one another."""
