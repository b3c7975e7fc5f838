// The memory that a benchmark computes on, and the random numbers in it. Knows
// no gRPC and measures nothing.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_TENSORS_H_
#define ATTND_SERVER_CALLS_BENCHMARK_TENSORS_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "core/attention_engine.h"
#include "core/attention_problem.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd::server {

// One tensor in a block of its own. The block is rounded up to a multiple of
// the alignment. This type only gives out spans of the tensor's elements, so
// that padding is never used as a part of the tensor.
class BenchmarkTensor {
 public:
  // Returns a tensor without contents, or RESOURCE_EXHAUSTED if the system has
  // no memory for it.
  static absl::StatusOr<BenchmarkTensor> Make(DataType type,
                                              int64_t size_bytes);

  BenchmarkTensor() = default;

  DataType type() const { return type_; }
  void* data() const { return block_.data(); }
  int64_t size_bytes() const { return size_bytes_; }
  // All elements of a tensor of F32.
  std::span<float> floats() const;
  // All elements of a tensor of F16 or BF16.
  std::span<uint16_t> halves() const;

 private:
  DataType type_ = DataType::kF32;
  int64_t size_bytes_ = 0;
  Workspace block_;
};

// The inputs and the output of all runs of one algorithm on one problem.
struct BenchmarkTensors {
  BenchmarkTensor query;
  BenchmarkTensor key;
  BenchmarkTensor value;
  BenchmarkTensor output;

  // Returns tensors whose inputs have no contents yet. The output is filled
  // with NaN, so that its pages are touched before anything is timed, and a row
  // that is never written can be seen. If `stop` asks to stop, returns its
  // status within milliseconds.
  static absl::StatusOr<BenchmarkTensors> Make(const AttentionProblem& problem,
                                               const StopSignal& stop);

  AttentionBuffers buffers() const;
  int64_t size_bytes() const;
};

// Fills the inputs of `tensors` with random numbers in [-1, 1), the same ones
// in every call. `twins`, if not null, are the tensors of the same problem in
// F32. Their inputs get the numbers that `tensors` holds after rounding. If
// `stop` asks to stop, returns its status within milliseconds.
absl::Status FillInputs(const BenchmarkTensors& tensors,
                        const BenchmarkTensors* twins, const StopSignal& stop);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_TENSORS_H_
