"""Real servers, scripted servers and helpers that the tests stand on."""
