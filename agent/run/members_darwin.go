package run

// onlyZombies is not answered here: launchd reaps whatever it adopts at once.
func onlyZombies(int) bool { return false }
