"""The board: finished runs packed into one file each, and a static leaderboard of such files, verified in part."""
