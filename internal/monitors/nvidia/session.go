package nvidia

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/accel"
	"github.com/cjmd/cjmd/internal/resource"
)

// rescanEvery is how often devices are listed anew: a card that came back or
// was added, MIG instances that were made.
const rescanEvery = 30 * time.Second

// session is an initialised NVML. Not for concurrent use.
type session struct {
	lib     nvml.Interface
	root    string
	clock   func() time.Time
	has     features
	cards   []card
	scanned time.Time
	facts   map[string]any // of the driver; and of what was found but not listed
}

// card is one device of ours: a GPU, or a MIG instance of one.
type card struct {
	dev    nvml.Device
	whole  nvml.Device // the GPU it is a part of; itself when not MIG
	mig    bool
	id     string
	name   string
	index  int
	shares int // further compute instances in the same memory
}

// openSession initialises NVML and lists the devices. What it opened is closed
// again on an error.
func openSession(o *Options) (_ *session, err error) {
	lib, err := initialise(o.libraries())
	if err != nil {
		return nil, err
	}
	s := &session{lib: lib, root: o.Root, clock: o.Clock}
	defer func() {
		if err != nil {
			lib.Shutdown() // the first error says more
		}
	}()
	if s.has, err = lookUp(lib); err != nil {
		return nil, err
	}
	if err := s.scan(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *session) close() error {
	if ret := s.lib.Shutdown(); ret != nvml.SUCCESS && ret != nvml.ERROR_UNINITIALIZED {
		return failure("shut NVML down", "", ret)
	}
	return nil
}

// scan lists the devices. A GPU that fell off the bus does not hide the others;
// it is named in the facts.
func (s *session) scan() error {
	n, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return failure("count devices", "", ret)
	}
	if n == 0 {
		return fmt.Errorf("cannot find an NVIDIA GPU, though there is a driver: %w", monitors.ErrUnsupported)
	}
	s.cards, s.facts, s.scanned = nil, make(map[string]any), s.clock()
	if s.has.driverVersion {
		if v, ret := s.lib.SystemGetDriverVersion(); ret == nvml.SUCCESS {
			s.facts["driver_version"] = v
		}
	}
	var lost []string
	var last error
	for i := range n {
		if err := s.scanGPU(i); err != nil {
			lost, last = append(lost, err.Error()), err
		}
	}
	if len(lost) > 0 {
		s.facts["lost_devices"] = lost
	}
	switch {
	case len(s.cards) == 0 && last != nil:
		return last
	case len(s.cards) == 0:
		return fmt.Errorf("cannot find a usable NVIDIA device: MIG is on and has no instance: %w", monitors.ErrUnsupported)
	}
	return nil
}

// scanGPU adds the GPU at an index, or its MIG instances: a GPU in MIG mode
// cannot be used as a whole.
func (s *session) scanGPU(i int) error {
	dev, ret := s.lib.DeviceGetHandleByIndex(i)
	if ret != nvml.SUCCESS {
		return failure("find", fmt.Sprintf("number %d", i), ret)
	}
	whole, err := describe(dev, fmt.Sprintf("number %d", i))
	if err != nil {
		return err
	}
	if s.has.mig {
		switch mode, _, ret := dev.GetMigMode(); {
		case ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE:
			return s.scanMIG(whole)
		case ret != nvml.SUCCESS && !dispensable(ret):
			return failure("read the MIG mode", whole.id, ret)
		}
	}
	whole.index = len(s.cards)
	s.cards = append(s.cards, whole)
	return nil
}

func (s *session) scanMIG(whole card) error {
	n, ret := whole.dev.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return failure("count the MIG instances", whole.id, ret)
	}
	memory := make(map[int]int) // GPU instance → place in cards
	for i := range n {
		dev, ret := whole.dev.GetMigDeviceHandleByIndex(i)
		if ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT {
			continue // the slot is empty
		}
		if ret != nvml.SUCCESS {
			return failure("find a MIG instance", whole.id, ret)
		}
		c, err := describe(dev, whole.id)
		if err != nil {
			return err
		}
		if s.has.gpuInstance {
			// Compute instances of one GPU instance share its memory: as two devices
			// it would be given away twice.
			if gi, ret := dev.GetGpuInstanceId(); ret == nvml.SUCCESS {
				if at, known := memory[gi]; known {
					s.cards[at].shares++
					continue
				}
				memory[gi] = len(s.cards)
			}
		}
		c.mig, c.whole, c.index = true, whole.dev, len(s.cards)
		s.cards = append(s.cards, c)
	}
	return nil
}

func describe(dev nvml.Device, place string) (card, error) {
	id, ret := dev.GetUUID()
	if ret != nvml.SUCCESS {
		return card{}, failure("read the UUID", place, ret)
	}
	name, ret := dev.GetName()
	if ret != nvml.SUCCESS && !dispensable(ret) {
		return card{}, failure("read the name", id, ret)
	}
	return card{dev: dev, whole: dev, id: id, name: strings.TrimSpace(name)}, nil
}

// dispensable says that a device or driver does not have a figure, which is no
// fault.
func dispensable(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_NO_PERMISSION, nvml.ERROR_FUNCTION_NOT_FOUND, nvml.ERROR_NO_DATA,
		nvml.ERROR_NOT_FOUND, nvml.ERROR_DEPRECATED, nvml.ERROR_ARGUMENT_VERSION_MISMATCH:
		return true
	default:
		return false
	}
}

// read takes one sample. A device that cannot be read any more is an error: the
// caller must not go on as if it had never been there.
func (s *session) read(context.Context) (accel.Reading, error) {
	if s.clock().Sub(s.scanned) >= rescanEvery {
		if err := s.scan(); err != nil {
			return accel.Reading{}, err
		}
	}
	r := accel.Reading{Vendor: vendor, Details: make(map[string]any, len(s.facts)+1)}
	for k, v := range s.facts {
		r.Details[k] = v
	}
	per := make(map[string]any, len(s.cards))
	for i := range s.cards {
		c := &s.cards[i]
		d, more, err := s.device(c)
		if err != nil {
			return accel.Reading{}, err
		}
		ps, err := s.processes(c, d.Total)
		if err != nil {
			return accel.Reading{}, err
		}
		r.Devices = append(r.Devices, d)
		r.Processes = append(r.Processes, ps...)
		if len(more) > 0 {
			per[c.id] = more
		}
	}
	if len(per) > 0 {
		r.Details["devices"] = per
	}
	return r, nil
}

// device reads the figures of one device; more holds what only people read.
func (s *session) device(c *card) (d resource.Device, more map[string]any, err error) {
	d = resource.Device{ID: resource.DeviceID(c.id), Index: c.index, Name: c.name}
	more = make(map[string]any)
	if err := s.memory(c, &d, more); err != nil {
		return d, nil, err
	}
	if c.mig {
		more["mig"] = true
	}
	if c.shares > 0 {
		more["compute_instances_not_listed"] = c.shares
	}
	if s.has.utilisation {
		switch u, ret := c.dev.GetUtilizationRates(); {
		case ret == nvml.SUCCESS:
			d.LoadPercent = float64(min(u.Gpu, 100))
		case !dispensable(ret) && !(c.mig && ret == nvml.ERROR_INVALID_ARGUMENT):
			return d, nil, failure("read the load", c.id, ret)
		default:
			more["load_unknown"] = true
		}
	}
	if s.has.temperature {
		switch t, ret := c.whole.GetTemperature(nvml.TEMPERATURE_GPU); {
		case ret == nvml.SUCCESS:
			d.TempCelsius = float64(t)
		case !dispensable(ret):
			return d, nil, failure("read the temperature", c.id, ret)
		}
	}
	if s.has.power && !c.mig { // the driver measures whole GPUs; a share of it would be a guess
		switch mw, ret := c.dev.GetPowerUsage(); {
		case ret == nvml.SUCCESS:
			d.PowerWatts = float64(mw) / 1000
		case !dispensable(ret):
			return d, nil, failure("read the power", c.id, ret)
		}
	}
	return d, more, nil
}

// memory counts what the driver keeps for itself as used: nobody can have it.
func (s *session) memory(c *card, d *resource.Device, more map[string]any) error {
	set := func(total, free uint64) {
		d.Total = resource.Bytes(total)
		d.Free = min(resource.Bytes(free), d.Total)
		d.Used = d.Total - d.Free
	}
	if s.has.memoryV2 {
		switch m, ret := c.dev.GetMemoryInfo_v2(); {
		case ret == nvml.SUCCESS && m.Total > 0:
			set(m.Total, m.Free)
			more["reserved_memory_mb"] = resource.Bytes(m.Reserved).MB()
			return nil
		case ret != nvml.SUCCESS && !dispensable(ret):
			return failure("read the memory", c.id, ret)
		}
	}
	switch m, ret := c.dev.GetMemoryInfo(); {
	case ret == nvml.SUCCESS && m.Total > 0:
		set(m.Total, m.Free)
		return nil
	case ret == nvml.SUCCESS || ret == nvml.ERROR_NOT_SUPPORTED:
		d.Unified = true // a chip that uses the host's memory has none to tell
		return nil
	default:
		return failure("read the memory", c.id, ret)
	}
}
