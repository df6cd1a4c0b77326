"""What `scripts/speedrun.py` measures accelnet against."""
