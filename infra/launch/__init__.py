"""Starting, watching and ending the job of one stage attempt."""
