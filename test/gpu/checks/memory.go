package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"
)

// system is what the monitor tells.
type system struct {
	Monitor string `json:"monitor"`
	Fresh   bool   `json:"fresh"`
	GPUType string `json:"gpu_type"`
	Devices []struct {
		UUID    string  `json:"uuid"`
		TotalMB float64 `json:"total_mb"`
		UsedMB  float64 `json:"used_mb"`
	} `json:"devices"`
}

func (s *session) checkDevices(ctx context.Context) (string, error) {
	var sys system
	var differs error
	err := until(ctx, 10*time.Second, "the monitor to say what the driver says", func() (bool, error) { // it may be idle and look every few seconds
		if err := s.call(ctx, http.MethodGet, "/v1/system", nil, &sys); err != nil {
			return false, err
		}
		differs = s.compare(sys)
		return sys.Fresh && differs == nil, nil
	})
	if err != nil {
		return "", errors.Join(err, differs)
	}
	var seen []string
	for _, d := range sys.Devices {
		seen = append(seen, fmt.Sprintf("%s %.0f MiB", d.UUID, d.TotalMB))
	}
	return strings.Join(seen, ", "), nil
}

func (s *session) compare(sys system) error {
	if sys.Monitor != "nvidia" || sys.GPUType != "NVIDIA" || len(sys.Devices) != len(s.m.Cards) {
		return fmt.Errorf("monitor %q, type %q, %d devices; the driver has %d", sys.Monitor, sys.GPUType, len(sys.Devices), len(s.m.Cards))
	}
	for _, d := range sys.Devices {
		c := s.m.card(d.UUID)
		if c == nil {
			return fmt.Errorf("device %s is none that the driver has", d.UUID)
		}
		used, err := s.m.usedMB(c)
		if err != nil {
			return err
		}
		if !within(d.TotalMB, c.TotalMB, 0.02) || math.Abs(d.UsedMB-used) > s.slack()+0.02*c.TotalMB {
			return fmt.Errorf("%s: the monitor says %.0f of %.0f MiB are used, the driver %.0f of %.0f", d.UUID, d.UsedMB, d.TotalMB, used, c.TotalMB)
		}
	}
	return nil
}

func (s *session) checkVisible(ctx context.Context) (string, error) {
	f, err := s.work(ctx, "alloc", nil)
	if err != nil {
		return "", err
	}
	if f.Visible == nil || *f.Visible != s.card.UUID {
		return "", fmt.Errorf("the worker was given CUDA_VISIBLE_DEVICES=%s, its card is %s", shown(f.Visible), s.card.UUID)
	}
	if len(f.Devices) != 1 || f.Devices[0] != "" && !strings.HasSuffix(s.card.UUID, f.Devices[0]) {
		return "", fmt.Errorf("torch in the worker sees %v, its card is %s", f.Devices, s.card.UUID)
	}
	none, err := s.work(ctx, "nogpu", nil)
	if err != nil {
		return "", err
	}
	if none.Sees != 0 {
		return "", fmt.Errorf("a worker without a need for a GPU sees %d (CUDA_VISIBLE_DEVICES=%s)", none.Sees, shown(none.Visible))
	}
	return fmt.Sprintf("%s; without a need: %s", *f.Visible, shown(none.Visible)), nil
}

func shown(v *string) string {
	if v == nil {
		return "(not set)"
	}
	return fmt.Sprintf("%q", *v)
}

func (s *session) checkSeveralCards(ctx context.Context) (string, error) {
	if len(s.m.Cards) < 2 {
		return "", &absentError{"this machine has one card"}
	}
	f, err := s.work(ctx, "pair", nil)
	if err != nil {
		return "", err
	}
	if f.Visible == nil {
		return "", errors.New("CUDA_VISIBLE_DEVICES is not set")
	}
	ids := strings.Split(*f.Visible, ",")
	if len(ids) != 2 || ids[0] == ids[1] || s.m.card(ids[0]) == nil || s.m.card(ids[1]) == nil || len(f.Devices) != 2 {
		return "", fmt.Errorf("CUDA_VISIBLE_DEVICES=%q, torch sees %v", *f.Visible, f.Devices)
	}
	return *f.Visible, nil
}

// residents runs one job of a plugin on a still card and returns what the
// driver then shows beyond the baseline, and what torch's allocator holds.
func (s *session) residents(ctx context.Context, plugin string, kwargs map[string]any) (driver, torch float64, err error) {
	before, err := s.m.usedMB(s.card)
	if err != nil {
		return 0, 0, err
	}
	f, err := s.work(ctx, plugin, kwargs)
	if err != nil {
		return 0, 0, err
	}
	after, err := s.m.usedMB(s.card)
	if err != nil {
		return 0, 0, err
	}
	if len(f.Reserved) != 1 {
		return 0, 0, fmt.Errorf("torch in the worker sees %d cards, not one", len(f.Reserved))
	}
	return after - before, f.Reserved[0] / mib, nil
}

// agrees waits until the ledger measures about as much as the driver shows.
func (s *session) agrees(ctx context.Context, plugin string, driver float64) (measured float64, err error) {
	err = until(ctx, 10*time.Second, "the ledger to measure the worker", func() (bool, error) {
		var err error
		measured, err = s.measured(ctx, plugin)
		return within(measured, driver, 0.10), err
	})
	if err != nil {
		return measured, fmt.Errorf("the ledger measures %.0f MiB, the driver shows %.0f: %w", measured, driver, err)
	}
	return measured, nil
}

func (s *session) checkAttribution(ctx context.Context) (string, error) {
	driver, torch, err := s.residents(ctx, "alloc", nil)
	if err != nil {
		return "", err
	}
	if driver < torch {
		return "", fmt.Errorf("torch holds %.0f MiB, but the card only shows %.0f more", torch, driver)
	}
	measured, err := s.agrees(ctx, "alloc", driver)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("ledger %.0f MiB; torch %.0f + context %.0f", measured, torch, driver-torch), nil
}

func (s *session) checkProfile(ctx context.Context) (string, error) {
	driver, _, err := s.residents(ctx, "share", nil)
	if err != nil {
		return "", err
	}
	var p struct {
		Profiles []struct {
			Current      bool `json:"current"`
			ResidentVRAM struct {
				MB     float64 `json:"mb"`
				Source string  `json:"source"`
			} `json:"resident_vram"`
		} `json:"profiles"`
	}
	err = until(ctx, 10*time.Second, "the profile", func() (bool, error) {
		err := s.call(ctx, http.MethodGet, "/v1/plugins/share/profile", nil, &p)
		return len(p.Profiles) > 0 && p.Profiles[0].Current && within(p.Profiles[0].ResidentVRAM.MB, driver, 0.10), err
	})
	if err != nil {
		return "", fmt.Errorf("the driver shows %.0f MiB, the profile says %+v: %w", driver, p, err)
	}
	r := p.Profiles[0].ResidentVRAM
	return fmt.Sprintf("resident %.0f MiB (%s); the driver shows %.0f", r.MB, r.Source, driver), nil
}

func (s *session) checkLeak(ctx context.Context) (string, error) {
	first, _, err := s.residents(ctx, "leak", nil)
	if err != nil {
		return "", err
	}
	grown, _, err := s.residents(ctx, "leak", map[string]any{"leak_mb": s.size.extra})
	if err != nil {
		return "", err
	}
	if !within(grown, s.size.extra, 0.10) {
		return "", fmt.Errorf("the worker was to keep %.0f MiB, the driver shows %.0f more", s.size.extra, grown)
	}
	measured, err := s.agrees(ctx, "leak", first+grown)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%.0f MiB resident, %.0f kept; ledger %.0f", first, grown, measured), nil
}
