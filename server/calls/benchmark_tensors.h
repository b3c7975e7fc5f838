// Allocates the tensors of a benchmark, and fills them with random numbers.
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

// One tensor in a block of memory that it owns. The block may be larger than
// the tensor, because its size is a multiple of the alignment. The functions
// here return exactly the elements of the tensor.
class BenchmarkTensor {
 public:
  // Returns a tensor whose elements have no values yet. RESOURCE_EXHAUSTED if
  // the system has not enough memory.
  static absl::StatusOr<BenchmarkTensor> Make(DataType type,
                                              int64_t size_bytes);

  BenchmarkTensor() = default;

  DataType type() const { return type_; }
  void* data() const { return block_.data(); }
  int64_t size_bytes() const { return size_bytes_; }
  // All elements. The type must be F32.
  std::span<float> floats() const;
  // All elements as their bits. The type must be F16 or BF16.
  std::span<uint16_t> halves() const;

 private:
  DataType type_ = DataType::kF32;
  int64_t size_bytes_ = 0;
  Workspace block_;
};

// The inputs and the output of one problem. All repetitions of a benchmark use
// the same tensors.
struct BenchmarkTensors {
  BenchmarkTensor query;
  BenchmarkTensor key;
  BenchmarkTensor value;
  BenchmarkTensor output;

  // Returns tensors for `problem`. The inputs have no values yet. The output is
  // filled with NaN, so that the operating system provides its pages before
  // anything is timed, and so that the verification notices a row that is never
  // written. When `stop` asks to stop, returns its status within milliseconds.
  static absl::StatusOr<BenchmarkTensors> Make(const AttentionProblem& problem,
                                               const StopSignal& stop);

  AttentionBuffers buffers() const;
  int64_t size_bytes() const;
};

// Fills the inputs of `tensors` with random numbers in [-1, 1), the same ones
// in every call. If `f32_tensors` is not null, it must have the tensors of the
// same problem in F32; its inputs get the same numbers, after rounding to the
// type of `tensors`. When `stop` asks to stop, returns its status within
// milliseconds.
absl::Status FillInputs(const BenchmarkTensors& tensors,
                        const BenchmarkTensors* f32_tensors,
                        const StopSignal& stop);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_TENSORS_H_
