"""Files that lie, rot, or go away while they are used: right answers or one clear error."""
