package userspace

import (
	"errors"
	"fmt"
	"io/fs"
	"log/syslog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// Serve makes the interface name in the network namespace of the process and
// serves it with a socket for wg(8) until it is deleted or SIGTERM or SIGINT
// comes. It is the whole program of the child that Start starts: it writes ready
// on stderr once wg(8) gets answers and says nothing there any more. It ends
// early when whoever reads stderr is gone by then.
//
// Afterwards it logs to syslog if there is one: errors, and with LOG_LEVEL
// "verbose" or "debug" everything, with "silent" nothing.
func Serve(name string) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE) // a lost reader is an error of write then
	unix.Umask(0o077)
	// for ps(1), where the name would be "exe"; a file name elsewhere is as good
	_ = os.WriteFile("/proc/self/comm", []byte("wg-quickns"), 0)

	if served(name) {
		return fmt.Errorf("%s is served already: there is one socket per name, %s, for all network namespaces; take another name",
			name, socket(name))
	}
	link, err := tun.CreateTUN(name, device.DefaultMTU)
	if err != nil {
		return fmt.Errorf("create the tun interface %s: %w", name, err)
	}
	defer link.Close()
	log := newLogger(name)
	if err := noLinkLocal(name); err != nil {
		log.Errorf("%v", err)
	}
	uapi, err := listenUAPI(name)
	if err != nil {
		return err
	}
	defer uapi.Close()
	reader := &loopless{Device: link}
	dev := device.NewDevice(reader, conn.NewDefaultBind(), log)
	reader.device.Store(dev)
	defer dev.Close()
	closed := make(chan error, 1)
	go func() {
		for {
			c, err := uapi.Accept()
			if err != nil {
				closed <- err
				return
			}
			go dev.IpcHandle(c)
		}
	}()
	if err := detach(); err != nil {
		return err
	}
	select {
	case <-term:
	case <-closed: // the socket was removed
	case <-dev.Wait(): // the interface was deleted
	}
	return nil
}

// detach tells the parent that all is well and gives its pipe up.
func detach() error {
	if _, err := os.Stderr.WriteString(ready); err != nil {
		return fmt.Errorf("tell the parent: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	return unix.Dup3(null, 2, 0)
}

// noLinkLocal keeps the kernel from giving the interface a random fe80::
// address, which one of type wireguard does not have (net/ipv6/addrconf.c,
// IN6_ADDR_GEN_MODE_NONE).
func noLinkLocal(name string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0)
	if err == nil || errors.Is(err, fs.ErrNotExist) { // there is no IPv6
		return nil
	}
	return fmt.Errorf("turn off the link-local address of %s: %w", name, err)
}

// listenUAPI makes the socket for wg(8) in place of a stale one. The lock keeps
// two of one name, in two network namespaces, from taking each other's for stale.
func listenUAPI(name string) (net.Listener, error) {
	if err := os.MkdirAll(sockets, 0o700); err != nil {
		return nil, fmt.Errorf("create the folder of wg(8)'s sockets: %w", err)
	}
	dir, err := os.Open(sockets)
	if err != nil {
		return nil, fmt.Errorf("open the folder of wg(8)'s sockets: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", sockets, err)
	}
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", socket(name), err)
	}
	defer file.Close()
	if err := os.Chmod(socket(name), 0o600); err != nil {
		return nil, fmt.Errorf("restrict %s: %w", socket(name), err)
	}
	l, err := ipc.UAPIListen(name, file)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket(name), err)
	}
	return l, nil
}

// newLogger logs to syslog, with the level of wireguard-go's LOG_LEVEL.
func newLogger(name string) *device.Logger {
	l := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	level := os.Getenv("LOG_LEVEL")
	if level == "silent" {
		return l
	}
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_ERR, "wg-quickns")
	if err != nil {
		return l // there is no syslog, and nobody else listens
	}
	l.Errorf = func(format string, args ...any) { w.Err(fmt.Sprintf("("+name+") "+format, args...)) }
	if level == "verbose" || level == "debug" {
		l.Verbosef = func(format string, args ...any) { w.Debug(fmt.Sprintf("("+name+") "+format, args...)) }
	}
	return l
}
