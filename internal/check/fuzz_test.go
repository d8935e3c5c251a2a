package check

import "testing"

// FuzzConfig: no file makes it panic.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		"[Interface]\nPrivateKey = x\n[Peer]\nAllowedIPs = 0.0.0.0/0\n",
		"[Peer]\n[Interface] = x\nKillSwitch = true\n",
		"# wg-quickns: KillSwitch = true\n[Interface]\n# wg-quickns: Namespace = a\nRoutingStrategy = rules\nTable = off\nDNS = 10.0.0.1, x\n",
		"[Interface]\nAddress = 10.0.0.1/24\nMTU = 9000\nPostUp = ip rule add table 1\nSaveConfig = true\n[Peer]\nEndpoint = 10.0.0.1:1\nAllowedIPs = 10.0.0.0/8, ::/0\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := Config("wg0.conf", data, nil); err != nil {
			t.Fatal(err)
		}
	})
}
