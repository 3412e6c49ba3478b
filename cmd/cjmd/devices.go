package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	pluginmonitor "github.com/cjmd/cjmd/internal/monitors/plugin"
)

// amdDevice is how the AMD monitor and ROCm spell a card's own number. NVIDIA's
// UUIDs are longer and have dashes.
var amdDevice = regexp.MustCompile(`^GPU-[0-9a-f]{16}$`)

// amdByAddress begins the name of an AMD card that has no number of its own:
// ROCm can be told of it by its place in the order alone.
const amdByAddress = "PCI-"

// asItIs reports whether a device is one that no library can be told of: a sum
// over all of them, or a card of a maker without such a variable.
func asItIs(id string) bool {
	return id == pluginmonitor.AllDevices || strings.HasPrefix(id, pluginmonitor.GPUIndex)
}

// placeWorker sets, in a worker's environment, which accelerators it sees: those
// it was placed on, by UUID and in that order, under the names that CUDA, ROCm
// and HIP read, and for everybody else as CJM_DEVICES. Without a placement a
// worker that asks for an accelerator finds the machine as it is, and one that
// does not finds none, so that no library takes memory that nobody has counted;
// its manifest may say otherwise by setting a variable itself. index answers
// where a device stands in its monitor's order.
func placeWorker(env, devices []string, needsGPU bool, own map[string]string, index func(string) (int, bool)) ([]string, error) {
	if len(devices) == 0 && needsGPU {
		return env, nil
	}
	if slices.ContainsFunc(devices, asItIs) {
		return setVar(env, "CJM_DEVICES", strings.Join(devices, ",")), nil
	}
	var cuda, rocr, hip []string
	for _, id := range devices {
		if i, ok := strings.CutPrefix(id, pluginmonitor.CUDAIndex); ok {
			cuda = append(cuda, i)
			env = setVar(env, "CUDA_DEVICE_ORDER", "PCI_BUS_ID") // as nvidia-smi counts, not by speed
			continue
		}
		if i, ok := strings.CutPrefix(id, pluginmonitor.ROCmIndex); ok {
			rocr = append(rocr, i)
			continue
		}
		switch {
		case amdDevice.MatchString(id):
			rocr = append(rocr, id)
		case strings.HasPrefix(id, amdByAddress):
			i, ok := index(id)
			if !ok {
				return nil, fmt.Errorf("cannot place a worker on %s: the monitor does not see it", id)
			}
			rocr = append(rocr, strconv.Itoa(i))
		default:
			cuda = append(cuda, id)
		}
	}
	for i := range rocr { // HIP counts among what ROCm shows it
		hip = append(hip, strconv.Itoa(i))
	}
	for _, v := range []struct {
		name string
		list []string
		none string
	}{
		{"CUDA_VISIBLE_DEVICES", cuda, ""},
		{"NVIDIA_VISIBLE_DEVICES", cuda, "void"}, // what a container started by the worker gets
		{"ROCR_VISIBLE_DEVICES", rocr, ""},
		{"HIP_VISIBLE_DEVICES", hip, "-1"}, // empty would mean all
		{"CJM_DEVICES", devices, ""},
	} {
		value := v.none
		if len(v.list) > 0 {
			value = strings.Join(v.list, ",")
		}
		if _, said := own[v.name]; said && len(devices) == 0 {
			continue
		}
		env = setVar(env, v.name, value)
	}
	return env, nil
}

func setVar(env []string, name, value string) []string {
	env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	return append(env, name+"="+value)
}
