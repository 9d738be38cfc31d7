"""What all tests share."""

from hypothesis import settings

settings.register_profile("ours", deadline=None)  # a shared machine may be ten times slower for a moment
settings.load_profile("ours")
