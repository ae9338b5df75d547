"""The order service: its orders, the shorts that it makes good, the confirmations that it sends."""
