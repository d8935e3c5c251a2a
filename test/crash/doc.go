// Package crash breaks up and down at every point and looks at what is left.
package crash
