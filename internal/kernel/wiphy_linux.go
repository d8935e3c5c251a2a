package kernel

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
)

// wiphy is a Wi-Fi device of a namespace.
type wiphy struct {
	facts.Phy
	// movable says that its driver lets it move (WIPHY_FLAG_NETNS_OK), which the
	// kernel tells by naming the command that would do it among those it supports.
	movable bool
}

// wiphys lists the Wi-Fi devices of the namespace by their index, and of each
// Wi-Fi interface the index of its device (linux/nl80211.h). A kernel without
// Wi-Fi has none.
func (sp *space) wiphys(ctx context.Context) (list map[int]*wiphy, of map[int]int, err error) {
	list, of = map[int]*wiphy{}, map[int]int{}
	s, family, err := sp.generic(ctx, unix.NL80211_GENL_NAME)
	if err != nil || s == nil {
		return list, of, err
	}
	defer s.close()
	each := func(cmd byte, attr func(m *message), got func(body []byte)) error {
		return dump("Wi-Fi devices", func() error {
			return s.dump(func(m *message) uint16 {
				m.bytes(cmd, 0, 0, 0)
				attr(m)
				return family
			}, func(body []byte) error {
				got(body[min(unix.GENL_HDRLEN, len(body)):])
				return nil
			})
		})
	}
	// Split: in the form that older programs ask for, there is no room for all.
	err = each(unix.NL80211_CMD_GET_WIPHY, func(m *message) { m.attr(unix.NL80211_ATTR_SPLIT_WIPHY_DUMP, nil) }, func(body []byte) { parseWiphy(body, list) })
	if err != nil {
		return nil, nil, err
	}
	err = each(unix.NL80211_CMD_GET_INTERFACE, func(*message) {}, func(body []byte) {
		link, phy := 0, -1
		for typ, data := range attributes(body) {
			switch typ {
			case unix.NL80211_ATTR_IFINDEX:
				link = int(native32(data))
			case unix.NL80211_ATTR_WIPHY:
				phy = int(native32(data))
			}
		}
		if link != 0 && phy >= 0 {
			of[link] = phy
		}
	})
	return list, of, err
}

// parseWiphy reads one of the messages about a Wi-Fi device.
func parseWiphy(body []byte, list map[int]*wiphy) {
	var w *wiphy
	for typ, data := range attributes(body) { // its index comes first
		switch {
		case typ == unix.NL80211_ATTR_WIPHY:
			i := int(native32(data))
			if list[i] == nil {
				list[i] = &wiphy{Phy: facts.Phy{Index: i}}
			}
			w = list[i]
		case w == nil:
		case typ == unix.NL80211_ATTR_WIPHY_NAME:
			w.Name = unix.ByteSliceToString(data)
		case typ == unix.NL80211_ATTR_SUPPORTED_COMMANDS:
			for _, cmd := range attributes(data) {
				w.movable = w.movable || native32(cmd) == unix.NL80211_CMD_SET_WIPHY_NETNS
			}
		}
	}
}

// sendPhy moves a Wi-Fi device with all of its interfaces. One whose name is taken
// there gets another, "wlan%d".
func (sp *space) sendPhy(ctx context.Context, phy int, to *space) error {
	s, family, err := sp.generic(ctx, unix.NL80211_GENL_NAME)
	if err != nil {
		return err
	}
	if s == nil {
		return fmt.Errorf("the kernel has no Wi-Fi: %w", unix.EOPNOTSUPP)
	}
	defer s.close()
	_, err = s.batch(ctx, 1, false, func(m *message, _ int) (typ, flags uint16) {
		m.bytes(unix.NL80211_CMD_SET_WIPHY_NETNS, 0, 0, 0)
		m.attr32(unix.NL80211_ATTR_WIPHY, uint32(phy))
		m.attr32(unix.NL80211_ATTR_NETNS_FD, uint32(to.ns.Fd()))
		return family, 0
	})
	return err
}
