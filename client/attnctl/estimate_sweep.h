// attnctl estimate --sweep: the memory of several problems that differ in one
// size.
#ifndef ATTND_CLIENT_ATTNCTL_ESTIMATE_SWEEP_H_
#define ATTND_CLIENT_ATTNCTL_ESTIMATE_SWEEP_H_

#include <functional>

#include "absl/status/statusor.h"
#include "client/attnctl/session.h"
#include "client/attnctl/sweep.h"
#include "client/types.h"

namespace attnd::attnctl {

inline constexpr SweepAxis<client::MemoryEstimateOptions> kEstimateAxes[] = {
    {"seq-len", &client::MemoryEstimateOptions::seq_len},
    {"q-len", &client::MemoryEstimateOptions::q_len},
    {"kv-len", &client::MemoryEstimateOptions::kv_len},
    {"batch", &client::MemoryEstimateOptions::batch},
    {"concurrency", &client::MemoryEstimateOptions::concurrency},
    {"num-q-heads", &client::MemoryEstimateOptions::num_q_heads}};

// How attnctl estimate answers one question.
struct Estimator {
  std::function<absl::StatusOr<client::MemoryEstimate>(
      const client::MemoryEstimateOptions&)>
      estimate;
  // Prints the error of a question and returns the exit code.
  std::function<ExitCode(const absl::Status&)> report_error;
  std::function<Json(const client::MemoryEstimate&)> to_json;
  bool has_limits = false;  // whether it sets `fits`
};

// Estimates the problem of `options` for each value of the sweep in `flags`,
// which must have one, and prints all answers. If one fails, prints those
// before it and its error.
ExitCode RunEstimateSweep(const client::MemoryEstimateOptions& options,
                          const SweepFlags& flags, const Estimator& estimator,
                          Session& session);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ESTIMATE_SWEEP_H_
