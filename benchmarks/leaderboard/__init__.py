"""The leaderboard: every attention method on the shipped models, by density and schedule."""
