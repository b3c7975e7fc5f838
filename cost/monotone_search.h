// The search for the largest size that fits within limits.
#ifndef ATTND_COST_MONOTONE_SEARCH_H_
#define ATTND_COST_MONOTONE_SEARCH_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace attnd {

// What the search learns about a size.
struct SizeProbe {
  bool fits = false;
  // About how much of the scarcest limit the size uses: 1 is all of it. The
  // result does not depend on this number, but the search takes fewer steps if
  // it is nearly a linear function of the size.
  double use = 0;
};

// Returns the largest size from `first` to `last` that fits, or 0 if `first`
// does not fit. `probe(size)` returns a SizeProbe. Requires 0 < first <= last <
// 2^63 - 1, and that no size fits that is larger than one that does not. Calls
// `probe` about 15 times if the use is nearly linear, and never much more than
// twice as often as a binary search.
template <typename Probe>
int64_t LargestThatFits(int64_t first, int64_t last, const Probe& probe) {
  int64_t low = first;  // fits
  SizeProbe at_low = probe(low);
  if (!at_low.fits) return 0;
  int64_t high = last + 1;  // does not fit
  SizeProbe at_high{.fits = false, .use = INFINITY};
  // Finds a size that does not fit. For a use that is linear, this is twice the
  // result.
  while (low < last) {
    const double factor = std::clamp(2 / at_low.use, 2.0, 65536.0);
    const double larger = static_cast<double>(low) * factor;
    const int64_t size = larger < static_cast<double>(last)
                             ? static_cast<int64_t>(larger)
                             : last;
    const SizeProbe at_size = probe(size);
    if (!at_size.fits) {
      high = size;
      at_high = at_size;
      break;
    }
    low = size;
    at_low = at_size;
  }
  // Interpolates, but takes the middle whenever the last step did not halve the
  // distance.
  const auto distance = [&] { return static_cast<double>(high - low); };
  bool halved = true;
  while (high - low > 1) {
    const double before = distance();
    double at = before / 2;  // from `low`
    if (halved && at_high.use > 1 && std::isfinite(at_high.use)) {
      const double root =
          before * (1 - at_low.use) / (at_high.use - at_low.use);
      // Aims a little beyond the result, so that the distance is likely to
      // become small and not only the part of it on one side.
      at = root + std::copysign(before / 256, at - root);
    }
    // `at` is rounded, so it may exceed the distance.
    const int64_t size =
        low + std::clamp(static_cast<int64_t>(std::min(at, 0x1p62)), int64_t{1},
                         high - low - 1);
    const SizeProbe at_size = probe(size);
    (at_size.fits ? low : high) = size;
    (at_size.fits ? at_low : at_high) = at_size;
    halved = distance() <= before / 2;
  }
  return low;
}

}  // namespace attnd

#endif  // ATTND_COST_MONOTONE_SEARCH_H_
