"""What a session did: a journal while it runs, a notebook on request."""
