// How far an answer is from what was expected.
#ifndef ATTND_CLIENT_ATTNCTL_COMPARISON_H_
#define ATTND_CLIENT_ATTNCTL_COMPARISON_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace attnd::attnctl {

struct Comparison {
  // The largest |got - expected|; infinite where only one of the two is NaN or
  // where infinities differ, 0 where both are the same.
  double worst_error = 0;
  std::vector<int64_t> worst_index;  // where; empty if there is no difference

  bool Within(double max_error) const { return worst_error <= max_error; }
};

// FAILED_PRECONDITION where the shapes differ. Each span has as many elements
// as its shape says.
absl::StatusOr<Comparison> Compare(std::span<const float> got,
                                   const std::vector<int64_t>& got_shape,
                                   std::span<const double> expected,
                                   const std::vector<int64_t>& expected_shape);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_COMPARISON_H_
