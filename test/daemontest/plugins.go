package daemontest

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

//go:embed plugins
var pluginFiles embed.FS

// writePlugins puts the test plugins into dir. In manifests, ${PYTHON} is the
// interpreter and ${RUNS} the file in which every run is noted.
func writePlugins(dir, runs string) error {
	interpreter, err := python()
	if err != nil {
		return err
	}
	fill := strings.NewReplacer("${PYTHON}", interpreter, "${RUNS}", runs)
	return fs.WalkDir(pluginFiles, "plugins", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(path, "plugins"))
		if e.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		b, err := pluginFiles.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, []byte(fill.Replace(string(b))), 0o644); err != nil {
			return fmt.Errorf("cannot write a test plugin: %w", err)
		}
		return nil
	})
}
