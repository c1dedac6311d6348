"""Images in and out, folders, and sources of training pictures."""
