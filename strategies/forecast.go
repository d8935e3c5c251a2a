package strategies

import (
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// forecastIndex is the index of an interface that is not there yet.
const forecastIndex = -1

// Empty is what there is in a network namespace that was just made.
func Empty() *facts.Facts {
	f := &facts.Facts{IPv6: true, NFTables: true}
	for _, v6 := range []bool{false, true} {
		f.Rules = append(f.Rules,
			facts.Rule{IPv6: v6, Table: 255, SuppressPrefixLen: -1},
			facts.Rule{IPv6: v6, Priority: 32766, Table: plan.TableMain, SuppressPrefixLen: -1})
	}
	return f
}

// Forecast changes facts as the actions will, as far as later plans depend on it.
// What a hook does it cannot know.
func Forecast(f *facts.Facts, actions []plan.Action) {
	for _, a := range actions {
		switch do := a.Do.(type) {
		case plan.Link:
			f.Device.Name, f.Device.Index = do.Name, forecastIndex
			f.Links = append(f.Links, facts.Link{Name: do.Name, Index: forecastIndex, Type: "wireguard"})
		case plan.WG:
			configured(&f.Device, do.Device)
		case plan.FwMark:
			f.Device.FwMark = do.Mark
		case plan.Addr:
			for _, p := range do.List {
				f.Addrs = append(f.Addrs, facts.Addr{Prefix: p.Prefix})
				if !do.NoPrefixRoute && !p.Prefix.IsSingleIP() {
					f.Routes = append(f.Routes, facts.Route{
						Dst: p.Prefix.Masked(), Table: plan.TableMain, Index: forecastIndex, Protocol: protoKernel, Type: unicast,
					})
				}
			}
		case plan.Route:
			index, typ := forecastIndex, unicast
			if do.Unreachable {
				index, typ = 0, unreachable
			}
			for _, p := range do.List {
				f.Routes = append(f.Routes, facts.Route{
					Dst: p.Prefix.Masked(), Table: facts.Route{Table: do.Table}.Slot().Table, Index: index, Metric: do.Metric, Type: typ,
				})
			}
		case plan.Rule:
			f.Rules = append(f.Rules, asFact(do))
			slices.SortStableFunc(f.Rules, func(a, b facts.Rule) int { return int(a.Priority) - int(b.Priority) })
		case plan.Sysctl:
			if do.Name == SrcValidMark {
				f.SrcValidMark = 1
			}
		}
	}
}

// protoKernel is RTPROT_KERNEL of linux/rtnetlink.h.
const protoKernel = 2

// configured adds to a device what `wg addconf` would.
func configured(d *facts.Device, c *confparse.Device) {
	if c.FwMark != nil {
		d.FwMark = *c.FwMark
	}
	if c.ListenPort != nil {
		d.ListenPort = int(*c.ListenPort)
	}
	peers := make(map[confparse.Key]int)
	owner := make(map[netip.Prefix]int) // a prefix belongs to one peer: the last that asks
	var order []netip.Prefix
	for _, p := range c.Peers {
		i, ok := peers[p.PublicKey]
		if !ok {
			i = len(d.Peers)
			peers[p.PublicKey] = i
			d.Peers = append(d.Peers, facts.Peer{})
		}
		if p.Endpoint != nil {
			d.Peers[i].Endpoint = p.Endpoint.Addr
		}
		if p.ReplaceAllowedIPs && ok {
			for prefix, of := range owner {
				if of == i {
					delete(owner, prefix)
				}
			}
		}
		for _, a := range p.AllowedIPs {
			if a.Remove {
				if of, ok := owner[a.Prefix]; ok && of == i {
					delete(owner, a.Prefix)
				}
				continue
			}
			order, owner[a.Prefix] = append(order, a.Prefix), i
		}
	}
	for _, prefix := range order {
		if i, ok := owner[prefix]; ok {
			d.Peers[i].AllowedIPs = append(d.Peers[i].AllowedIPs, prefix)
			delete(owner, prefix)
		}
	}
}
