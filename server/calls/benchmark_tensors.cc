#include "server/calls/benchmark_tensors.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "base/half_float.h"
#include "server/calls/random_floats.h"

namespace attnd::server {
namespace {

// How much is written between two checks of the stop signal. Writing it takes
// milliseconds, including page faults.
constexpr size_t kPieceBytes = size_t{4} << 20;

// Calls `fill(begin, count)` for one part of `size` elements after the other.
template <typename Fill>
absl::Status InPieces(size_t size, size_t element_bytes, const StopSignal& stop,
                      const Fill& fill) {
  const size_t most = kPieceBytes / element_bytes;
  for (size_t begin = 0; begin < size; begin += most) {
    if (absl::Status status = stop.Check(); !status.ok()) return status;
    fill(begin, std::min(most, size - begin));
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

// `twin` has as many elements as `halves`, or none.
absl::Status FillHalves(DataType type, std::span<uint16_t> halves,
                        std::span<float> twin, RandomFloats& random,
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
        if (!twin.empty()) {
          twin[at] = f16 ? FloatFromF16(half) : FloatFromBF16(half);
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
  absl::StatusOr<Workspace> block = Workspace::Reserve(size_bytes);
  if (!block.ok()) return block.status();
  BenchmarkTensor tensor;
  tensor.type_ = type;
  tensor.size_bytes_ = size_bytes;
  tensor.block_ = *std::move(block);
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
    absl::StatusOr<BenchmarkTensor> made =
        BenchmarkTensor::Make(part.type, part.size_bytes);
    if (!made.ok()) return made.status();
    tensors.*part.tensor = *std::move(made);
  }
  auto* const output = static_cast<std::byte*>(tensors.output.data());
  // A number whose bits are all ones is a NaN in every type.
  absl::Status status =
      InPieces(static_cast<size_t>(tensors.output.size_bytes()), 1, stop,
               [&](size_t begin, size_t count) {
                 std::memset(output + begin, 0xff, count);
               });
  if (!status.ok()) return status;
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
                        const BenchmarkTensors* twins, const StopSignal& stop) {
  RandomFloats random(/*seed=*/1);
  for (const auto tensor : {&BenchmarkTensors::query, &BenchmarkTensors::key,
                            &BenchmarkTensors::value}) {
    const BenchmarkTensor& to = tensors.*tensor;
    const std::span<float> twin =
        twins != nullptr ? (twins->*tensor).floats() : std::span<float>();
    absl::Status status =
        to.type() == DataType::kF32
            ? FillFloats(to.floats(), random, stop)
            : FillHalves(to.type(), to.halves(), twin, random, stop);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace attnd::server
