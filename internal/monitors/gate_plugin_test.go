package monitors_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cjmd/cjmd/internal/monitors"
)

// served is a monitor that an instance of a plugin serves.
type served struct {
	scripted
	instance string
}

func (s *served) Instance() string { return s.instance }

func TestGate_APluginIsRegisteredByPrefixNameOrInPlaceOfAnAlias(t *testing.T) {
	t.Parallel()
	there := map[string]bool{"sys-mon-nvidia": true, "cpu": true, "my-mon": true}
	broken := errors.New("broken")
	g, err := monitors.New(monitors.Options{
		Constructors: []monitors.Constructor{
			{Name: "nvidia", Aliases: []string{"sys-mon-nvidia"}, New: func(*monitors.Pace) (monitors.Monitor, error) { return &scripted{name: "nvidia"}, nil }},
			{Name: "cpu", Aliases: []string{"sys-mon-cpu"}, New: func(*monitors.Pace) (monitors.Monitor, error) { return &scripted{name: "cpu"}, nil }},
		},
		Plugin: func(name string, explicit bool, _ *monitors.Pace) (monitors.Monitor, error) {
			switch {
			case name == "broken":
				return nil, broken
			case explicit || there[name]:
				return &served{scripted{name: "plugin:" + name}, name}, nil
			}
			return nil, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, registered, instance string }{
		{"nvidia", "nvidia", ""},
		{"sys-mon-nvidia", "plugin:sys-mon-nvidia", "sys-mon-nvidia"}, // the owner's plugin in place of the alias
		{"sys-mon-cpu", "cpu", ""},
		{"cpu", "cpu", ""}, // a plugin does not replace the name itself
		{"plugin:cpu", "plugin:cpu", "cpu"},
		{"my-mon", "plugin:my-mon", "my-mon"},
		{"plugin:later", "plugin:later", "later"}, // bound when it is there
	} {
		if err := g.RegisterName(context.Background(), c.name); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if g.Registered() != c.registered || g.Instance() != c.instance {
			t.Errorf("%s: %q is registered, served by %q", c.name, g.Registered(), g.Instance())
		}
	}
	var unknown *monitors.UnknownError
	for _, name := range []string{"later", "plugin:", ""} {
		if err := g.RegisterName(context.Background(), name); !errors.As(err, &unknown) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := g.RegisterName(context.Background(), "plugin:broken"); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}
