package plugins

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/resource"
)

func TestPlacementOf_TheOwnersWishesComeFirst(t *testing.T) {
	t.Parallel()
	man := Manifest{Demand: resource.Demand{Devices: 2}, Placement: Placement{Count: 2, Pin: []string{"0"}, Avoid: []string{"3"}}}
	require.Equal(t, man.Placement, Instance{}.PlacementOf(man), "nothing said: as the manifest has it")
	require.Equal(t, 2, Instance{}.PlacementOf(Manifest{Demand: resource.Demand{Devices: 2}}).Count, "older manifests count in their needs")

	own := Instance{Placement: &Placement{Pin: []string{"GPU-9"}, Prefer: []string{"1"}}}.PlacementOf(man)
	require.Equal(t, Placement{Count: 2, Pin: []string{"GPU-9"}, Prefer: []string{"1"}, Avoid: []string{"3"}}, own)

	lifted := Instance{Placement: &Placement{Count: 1, Pin: []string{}}}.PlacementOf(man)
	require.Equal(t, 1, lifted.Count)
	require.Empty(t, lifted.Pin, "an empty list lifts the manifest's")
}

func TestValidDevice(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"0": true, "GPU-6f1e": true, "MIG-1/2": true, "": false, "a b": false, "0,1": false, "a\n": false, "ü": false} {
		require.Equal(t, want, ValidDevice(name), "%q", name)
	}
}
