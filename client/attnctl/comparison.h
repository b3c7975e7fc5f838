// Compares a computed array with the expected one.
#ifndef ATTND_CLIENT_ATTNCTL_COMPARISON_H_
#define ATTND_CLIENT_ATTNCTL_COMPARISON_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace attnd::attnctl {

struct Comparison {
  // The largest |got - expected| of all elements. The difference of two equal
  // elements is 0, also if both are NaN or the same infinity. It is infinite if
  // only one of the two is NaN, or if they are different infinities.
  double worst_error = 0;
  // The index of the element with that error, along each axis. Empty if all
  // elements are equal.
  std::vector<int64_t> worst_index;

  bool Within(double max_error) const { return worst_error <= max_error; }
};

// Compares `got` with `expected` element by element. Each span must have as
// many elements as its shape says. Returns FAILED_PRECONDITION if the shapes
// differ.
absl::StatusOr<Comparison> Compare(std::span<const float> got,
                                   const std::vector<int64_t>& got_shape,
                                   std::span<const double> expected,
                                   const std::vector<int64_t>& expected_shape);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_COMPARISON_H_
