package facts

// Interface is a network interface with all that a move to another network
// namespace takes from it.
type Interface struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	Kind  string `json:"kind,omitempty"` // IFLA_INFO_KIND: "vlan", "bond", ...; "" for hardware
	MAC   string `json:"mac,omitempty"`
	Alias string `json:"alias,omitempty"`
	MTU   int    `json:"mtu"`
	Up    bool   `json:"up,omitempty"`
	// TxQueueLen is in packets.
	TxQueueLen int `json:"txQueueLen,omitempty"`
	// Hardware says that a device of the machine backs it (/sys/class/net/NAME/device).
	Hardware bool `json:"hardware,omitempty"`
	// Default says that a default route of table main leads by it, in either family.
	Default bool `json:"default,omitempty"`
	// Master is the bond or bridge that it is a port of, Lower what it lies upon
	// (a VLAN's interface), both by their index, 0: none.
	Master int `json:"master,omitempty"`
	Lower  int `json:"lower,omitempty"`
	// Info is its IFLA_LINKINFO of linux/if_link.h, where it is a VLAN, bond or bridge
	// or the port of one.
	Info []byte `json:"info,omitempty"`
	// Twin says that it cannot move, and that a second one is made in its stead in the
	// other namespace: a bond, a bridge, or a VLAN upon such.
	Twin bool `json:"twin,omitempty"`
	// Phy is the Wi-Fi device that it belongs to, with which alone it can move; nil: it is no Wi-Fi.
	Phy *Phy `json:"phy,omitempty"`
	// Fixed says why the kernel does not let it move, "" that it does.
	Fixed string `json:"fixed,omitempty"`
	// Settings is what it is configured with.
	Settings Settings `json:"settings,omitzero"`
}

// Phy is a Wi-Fi device, which may have several interfaces.
type Phy struct {
	Index int    `json:"index"` // wiphy, the same in every namespace
	Name  string `json:"name"`  // phy0
}

// Settings are an interface's addresses and so on, each as the kernel's own
// rtnetlink message has it (header of its kind and attributes, interface index as
// it was), so that the same can be made again elsewhere.
type Settings struct {
	// Read is when it was read, in seconds of CLOCK_BOOTTIME: lifetimes count from then.
	Read    int64             `json:"read,omitempty"`
	Addrs   [][]byte          `json:"addrs,omitempty"`   // struct ifaddrmsg; lifetimes as they were then
	Routes  []Route           `json:"routes,omitempty"`  // with their Way; of all tables but local; what leads by several is the last one's
	Names   map[int]string    `json:"names,omitempty"`   // of the other interfaces that are told by number, here and in Interface
	Rules   [][]byte          `json:"rules,omitempty"`   // struct fib_rule_hdr; those that name the interface
	Neighs  [][]byte          `json:"neighs,omitempty"`  // struct ndmsg; permanent ones
	Sysctls map[string]string `json:"sysctls,omitempty"` // "net.ipv4.conf.eth0.rp_filter" and so on; those that differ from a new interface's
	Qdisc   []byte            `json:"qdisc,omitempty"`   // struct tcmsg of the root's; nil: the kernel's own choice
}

// Owner is who configures interfaces: a systemd unit or a Client.
type Owner struct {
	Unit   string  // "" for a Client
	Client *Client // nil for a unit
	// Links are those of the asked interfaces that it configures.
	Links []string
	// Addresses says that it gives them addresses, which are then not carried over.
	Addresses bool
}

// Client is a program that configures interfaces, that root runs and no service manager.
type Client struct {
	Exe  string   `json:"exe"`
	Args []string `json:"args"` // with its own name
	Dir  string   `json:"dir,omitempty"`
	PID  int      `json:"pid,omitempty"` // when it was found; that of its main process
}
