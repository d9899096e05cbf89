package run_test

import "errors"

func mountProc(string) error { return errors.New("no /proc on this system") }
