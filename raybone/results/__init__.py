"""What a study came to: leaderboard, report, views, and forgetting."""
