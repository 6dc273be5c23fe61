"""What the making of several shipped models shares."""
