package main

import (
	"os"

	"wg-quickns/confparse"
)

// strip prints wg's part of the config file.
func (a app) strip(arg string) error {
	t, err := a.open(arg)
	if err != nil {
		return a.asRoot(err)
	}
	cfg, err := confparse.ParseLines(t.path, t.data)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(cfg.Strip())
	return err
}

// asRoot tries again through sudo where it was the calling user who may not look.
func (a app) asRoot(err error) error {
	if os.Getuid() == 0 {
		return err
	}
	return a.becomeRoot()
}
