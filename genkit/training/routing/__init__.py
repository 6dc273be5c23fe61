"""Who keeps full attention when the rest is sparse: heads by learned gates, layers by measured errors; as recipes."""
