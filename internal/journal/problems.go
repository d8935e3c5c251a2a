package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"time"
)

// A tunnel's problems are beside its journal, and go with it.
const (
	problemsFile    = "problems"
	problemsNewFile = "problems.new"
)

// problems is what the file holds.
type problems struct {
	Up   time.Time            `json:"up"` // Begin.Since: of which tunnel they are
	Seen map[string]time.Time `json:"seen"`
}

// Seen notes what is wrong with a tunnel, and says since when each is known to be: now,
// unless it was wrong at the last call too, by whatever process. It needs no lock: of
// two calls at once the last one's notes stay. Without a journal it notes nothing.
func (j *Journal) Seen(wrong []string, now time.Time) (map[string]time.Time, error) {
	now = now.UTC().Truncate(time.Second)
	seen := make(map[string]time.Time, len(wrong))
	for _, w := range wrong {
		seen[w] = now
	}
	if j.begin == nil {
		return seen, nil
	}
	var old problems
	data, err := os.ReadFile(j.path(problemsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read earlier problems: %w", err)
	}
	if json.Unmarshal(data, &old) != nil || !old.Up.Equal(j.begin.Since) {
		old = problems{}
	}
	for w, at := range old.Seen {
		if _, is := seen[w]; is {
			seen[w] = at
		}
	}
	if err == nil && len(seen) == 0 {
		err = os.Remove(j.path(problemsFile))
	} else if err = nil; !maps.EqualFunc(seen, old.Seen, time.Time.Equal) {
		data, _ = json.Marshal(problems{Up: j.begin.Since, Seen: seen}) // which always can be
		if err = os.WriteFile(j.path(problemsNewFile), data, 0o600); err == nil {
			err = os.Rename(j.path(problemsNewFile), j.path(problemsFile))
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the tunnel may go down meanwhile
		return nil, fmt.Errorf("note problems: %w", err)
	}
	return seen, nil
}
