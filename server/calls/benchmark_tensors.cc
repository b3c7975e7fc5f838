#include "server/calls/benchmark_tensors.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include "absl/status/status.h"
#include "base/half_float.h"
#include "base/status_macros.h"
#include "server/calls/random_floats.h"

namespace attnd::server {
namespace {

// How many bytes are written between two checks of the stop signal. That takes
// milliseconds, including page faults.
constexpr size_t kPieceBytes = size_t{4} << 20;

// Calls `fill(begin, count)` for consecutive parts of `size` elements, until
// `stop` asks to stop.
template <typename Fill>
absl::Status InPieces(size_t size, size_t element_bytes, const StopSignal& stop,
                      const Fill& fill) {
  const size_t max_count = kPieceBytes / element_bytes;
  for (size_t begin = 0; begin < size; begin += max_count) {
    ATTND_RETURN_IF_ERROR(stop.Check());
    fill(begin, std::min(max_count, size - begin));
  }
  return stop.Check();
}

absl::Status FillFloats(std::span<float> floats, RandomFloats& random,
                        const StopSignal& stop) {
  return InPieces(floats.size(), sizeof(float), stop,
                  [&](size_t begin, size_t count) {
                    random.Fill(floats.subspan(begin, count));
                  });
}

// Fills `halves` with random numbers of `type`, and `rounded` with the same
// numbers as floats, unless it is empty.
absl::Status FillHalves(DataType type, std::span<uint16_t> halves,
                        std::span<float> rounded, RandomFloats& random,
                        const StopSignal& stop) {
  const bool f16 = type == DataType::kF16;
  std::array<float, 1024> floats;
  const auto fill = [&](size_t begin, size_t count) {
    for (size_t done = 0; done < count;) {
      const size_t now = std::min(count - done, floats.size());
      random.Fill(std::span(floats).first(now));
      for (size_t i = 0; i < now; ++i) {
        const size_t at = begin + done + i;
        const uint16_t half =
            f16 ? F16FromFloat(floats[i]) : BF16FromFloat(floats[i]);
        halves[at] = half;
        if (!rounded.empty()) {
          rounded[at] = f16 ? FloatFromF16(half) : FloatFromBF16(half);
        }
      }
      done += now;
    }
  };
  return InPieces(halves.size(), sizeof(uint16_t), stop, fill);
}

}  // namespace

absl::StatusOr<BenchmarkTensor> BenchmarkTensor::Make(DataType type,
                                                      int64_t size_bytes) {
  BenchmarkTensor tensor;
  tensor.type_ = type;
  tensor.size_bytes_ = size_bytes;
  ATTND_ASSIGN_OR_RETURN(tensor.block_, Workspace::Reserve(size_bytes));
  return tensor;
}

std::span<float> BenchmarkTensor::floats() const {
  return {static_cast<float*>(data()),
          static_cast<size_t>(size_bytes_) / sizeof(float)};
}

std::span<uint16_t> BenchmarkTensor::halves() const {
  return {static_cast<uint16_t*>(data()),
          static_cast<size_t>(size_bytes_) / sizeof(uint16_t)};
}

absl::StatusOr<BenchmarkTensors> BenchmarkTensors::Make(
    const AttentionProblem& problem, const StopSignal& stop) {
  const AttentionParams& params = problem.params();
  struct Part {
    BenchmarkTensor BenchmarkTensors::*tensor;
    DataType type;
    int64_t size_bytes;
  };
  const Part parts[] = {
      {&BenchmarkTensors::query, params.query_dtype, problem.query_bytes()},
      {&BenchmarkTensors::key, params.key_dtype, problem.key_bytes()},
      {&BenchmarkTensors::value, params.value_dtype, problem.value_bytes()},
      {&BenchmarkTensors::output, params.output_dtype, problem.output_bytes()}};
  BenchmarkTensors tensors;
  for (const Part& part : parts) {
    ATTND_ASSIGN_OR_RETURN(tensors.*part.tensor,
                           BenchmarkTensor::Make(part.type, part.size_bytes));
  }
  auto* const output = static_cast<std::byte*>(tensors.output.data());
  // A number whose bits are all ones is a NaN in every type.
  ATTND_RETURN_IF_ERROR(
      InPieces(static_cast<size_t>(tensors.output.size_bytes()), 1, stop,
               [&](size_t begin, size_t count) {
                 std::memset(output + begin, 0xff, count);
               }));
  return tensors;
}

AttentionBuffers BenchmarkTensors::buffers() const {
  return {.query = query.data(),
          .key = key.data(),
          .value = value.data(),
          .output = output.data()};
}

int64_t BenchmarkTensors::size_bytes() const {
  return query.size_bytes() + key.size_bytes() + value.size_bytes() +
         output.size_bytes();
}

absl::Status FillInputs(const BenchmarkTensors& tensors,
                        const BenchmarkTensors* f32_tensors,
                        const StopSignal& stop) {
  RandomFloats random(/*seed=*/1);
  for (const auto tensor : {&BenchmarkTensors::query, &BenchmarkTensors::key,
                            &BenchmarkTensors::value}) {
    const BenchmarkTensor& to = tensors.*tensor;
    const std::span<float> rounded = f32_tensors != nullptr
                                         ? (f32_tensors->*tensor).floats()
                                         : std::span<float>();
    ATTND_RETURN_IF_ERROR(
        to.type() == DataType::kF32
            ? FillFloats(to.floats(), random, stop)
            : FillHalves(to.type(), to.halves(), rounded, random, stop));
  }
  return absl::OkStatus();
}

}  // namespace attnd::server
