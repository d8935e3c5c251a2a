package kernel

import (
	"testing"

	"wg-quickns/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }
