"""What goes wrong around a server, and what then becomes of sessions."""
