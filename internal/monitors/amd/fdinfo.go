package amd

import (
	"math"
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/resource"
)

// client is what the driver notes about one open file of a card.
type client struct {
	pci       string
	id        string // the same for duplicates of one file, also in other processes
	vram, gtt resource.Bytes
}

// parseFDInfo reads /proc/PID/fdinfo/N. Three generations of keys are known:
// "vram mem" (Linux 5.14), "drm-memory-vram" (5.19) and "drm-total-vram" with
// "drm-resident-vram" (6.12). false: not a file of an AMD card.
func parseFDInfo(info string) (client, bool) {
	var c client
	var amd bool
	// Of each region the best figure: what is in that memory now, not what could
	// have to be.
	best := map[string]int{}
	set := func(region string, rank int, value string) {
		n, ok := amount(value)
		if !ok || rank < best[region] {
			return
		}
		best[region] = rank
		switch region {
		case "vram":
			c.vram = n
		case "gtt":
			c.gtt = n
		}
	}
	for line := range strings.Lines(info) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch key {
		case "drm-driver":
			amd = value == "amdgpu"
		case "drm-pdev":
			c.pci = value
		case "drm-client-id":
			c.id = value
		case "pdev":
			c.pci, amd = value, true
		case "pasid":
			if c.id == "" {
				c.id = "pasid " + value
			}
		case "vram mem":
			set("vram", 1, value)
		case "gtt mem":
			set("gtt", 1, value)
		default:
			if region, ok := strings.CutPrefix(key, "drm-total-"); ok {
				set(region, 1, value)
			} else if region, ok := strings.CutPrefix(key, "drm-memory-"); ok {
				set(region, 2, value)
			} else if region, ok := strings.CutPrefix(key, "drm-resident-"); ok {
				set(region, 3, value)
			}
		}
	}
	c.pci = strings.ToLower(c.pci)
	return c, amd && c.pci != ""
}

// amount reads "123 KiB"; without a unit it is bytes.
func amount(value string) (resource.Bytes, bool) {
	figure, unit, _ := strings.Cut(value, " ")
	n, err := strconv.ParseInt(figure, 10, 64)
	if err != nil || n < 0 {
		return 0, false
	}
	shift := 0
	switch strings.TrimSpace(unit) {
	case "":
	case "KiB", "kB":
		shift = 10
	case "MiB":
		shift = 20
	case "GiB":
		shift = 30
	default:
		return 0, false
	}
	if n > math.MaxInt64>>shift {
		return 0, false
	}
	return resource.Bytes(n) << shift, true
}
