package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

// Watch tells when something that a tunnel depends on may have changed in one of
// the namespaces: a link, an address, a route, a rule, or the firewall (rtnetlink(7),
// NFNLGRP_NFTABLES). It says only that, by a value on the channel, which holds one: what
// changed is to be read. It costs nothing while nothing changes. stop ends it.
func (d *Doer) Watch(spaces []plan.NS) (changed <-chan struct{}, stop func(), err error) {
	const routes = 1<<(unix.RTNLGRP_LINK-1) |
		1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
		1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) |
		1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1)
	const firewall = 1 << (unix.NFNLGRP_NFTABLES - 1)
	c := make(chan struct{}, 1)
	var files []*os.File
	stop = func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, ns := range spaces {
		sp, err := d.space(ns)
		if err != nil {
			stop()
			return nil, nil, err
		}
		for protocol, groups := range map[int]uint32{unix.NETLINK_ROUTE: routes, unix.NETLINK_NETFILTER: firewall} {
			f, err := sp.listen(protocol, groups)
			if errors.Is(err, unix.EPROTONOSUPPORT) { // no nf_tables
				continue
			}
			if err != nil {
				stop()
				return nil, nil, err
			}
			files = append(files, f)
			go drain(f, c)
		}
	}
	return c, stop, nil
}

// listen opens a socket that hears of changes.
func (sp *space) listen(protocol int, groups uint32) (*os.File, error) {
	fd := -1
	err := sp.inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
		}
		return err
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("listen for changes in %s: %w", sp.ns.Name(), err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// drain reads until the file is closed. That messages were lost (ENOBUFS) says
// that something changed, too.
func drain(f *os.File, c chan<- struct{}) {
	buf := make([]byte, 4096) // the rest of a longer message is dropped, unread
	for {
		_, err := f.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
