#include "bench/core_case.h"

#include <sched.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string_view>

#include "base/half_float.h"
#include "core/naive_attention.h"

namespace attnd::bench {
namespace {

// Returns numbers from a short cycle of random numbers, so that a tensor of
// hundreds of megabytes is filled at the speed of memory.
class Normal {
 public:
  Normal() {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::generate_n(numbers_, kCount, [&] { return normal(rng); });
  }

  Workspace Fill(int64_t bytes, DataType type) {
    // A server keeps tensors in such memory: in huge pages, if there are any.
    Workspace to = WorkspacePool(0).Reserve(bytes).value();
    auto* halves = reinterpret_cast<uint16_t*>(to.data());
    switch (type) {
      case DataType::kF32:
        std::generate_n(to.floats(), bytes / 4, [&] { return Next(); });
        break;
      case DataType::kF16:
        std::generate_n(halves, bytes / 2,
                        [&] { return F16FromFloat(Next()); });
        break;
      case DataType::kBF16:
        std::generate_n(halves, bytes / 2,
                        [&] { return BF16FromFloat(Next()); });
        break;
      case DataType::kBool:
        break;
    }
    return to;
  }

 private:
  static constexpr size_t kCount =
      65521;  // a prime number, so that rows and heads differ

  float Next() {
    if (++at_ == kCount) at_ = 0;
    return numbers_[at_];
  }

  float numbers_[kCount];
  size_t at_ = 0;
};

}  // namespace

std::string_view DataTypeName(DataType type) {
  switch (type) {
    case DataType::kF16:
      return "f16";
    case DataType::kBF16:
      return "bf16";
    default:
      return "f32";
  }
}

AttentionProblem ProblemOf(const Case& c) {
  const TensorSpec query{.dtype = c.dtype,
                         .shape = {c.q_heads, c.q_len, c.head_dim}};
  const TensorSpec key{.dtype = c.dtype,
                       .shape = {c.kv_heads, c.kv_len, c.head_dim}};
  AttentionOptions options;
  if (c.causal) options.causal = Causal::kTopLeft;
  if (c.window > 0) options.window_left = c.window - 1;
  options.block_size = c.block_size;
  options.precision = c.precision;
  const OutputOptions outputs{.return_lse = c.pass == Case::Pass::kBackward};
  return AttentionProblem::Create(query, key, key, options, outputs).value();
}

Tensors::Tensors(const Case& c, const AttentionProblem& problem) {
  const auto normal = std::make_unique<Normal>();
  query_ = normal->Fill(problem.query_bytes(), c.dtype);
  key_ = normal->Fill(problem.key_bytes(), c.dtype);
  value_ = normal->Fill(problem.value_bytes(), c.dtype);
  output_ = normal->Fill(problem.output_bytes(), c.dtype);
  if (c.pass != Case::Pass::kBackward) return;
  lse_ = normal->Fill(problem.lse_bytes(), DataType::kF32);
  grad_output_ = normal->Fill(problem.output_bytes(), c.dtype);
  grad_query_ = normal->Fill(problem.query_bytes(), c.dtype);
  grad_key_ = normal->Fill(problem.key_bytes(), c.dtype);
  grad_value_ = normal->Fill(problem.value_bytes(), c.dtype);
}

AttentionBuffers Tensors::forward() const {
  return {.query = query_.data(),
          .key = key_.data(),
          .value = value_.data(),
          .output = output_.data(),
          .lse = lse_.floats()};
}

BackwardBuffers Tensors::backward() const {
  return {.query = query_.floats(),
          .key = key_.floats(),
          .value = value_.floats(),
          .output = output_.floats(),
          .lse = lse_.floats(),
          .grad_output = grad_output_.floats(),
          .grad_query = grad_query_.floats(),
          .grad_key = grad_key_.floats(),
          .grad_value = grad_value_.floats()};
}

RunStats RunOnce(const Case& c, AttentionEngine& engine,
                 const AttentionProblem& problem, const Tensors& tensors) {
  switch (c.pass) {
    case Case::Pass::kBackward:
      return engine.RunBackward(problem, tensors.backward()).value();
    case Case::Pass::kNaive:
      return NaiveAttention(engine, problem, tensors.forward()).value();
    case Case::Pass::kForward:
      break;
  }
  return engine.Run(problem, tensors.forward()).value();
}

std::unique_ptr<AttentionEngine> MakePinnedEngine(
    const EngineOptions& options) {
  cpu_set_t all;
  sched_getaffinity(0, sizeof(all), &all);
  if (options.threads == 1) {
    size_t last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(last, &all)) --last;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    sched_setaffinity(0, sizeof(one), &one);
  }
  // Workers inherit the mask of the thread that makes them.
  auto engine = std::make_unique<AttentionEngine>(options);
  sched_setaffinity(0, sizeof(all), &all);
  return engine;
}

Json RecordOf(const Case& c) {
  Json record = {{"name", c.name},
                 {"dtype", DataTypeName(c.dtype)},
                 {"batch", 1},
                 {"q_heads", c.q_heads},
                 {"kv_heads", c.kv_heads},
                 {"q_len", c.q_len},
                 {"kv_len", c.kv_len},
                 {"head_dim", c.head_dim},
                 {"causal", c.causal},
                 {"window", c.window},
                 {"threads", c.threads}};
  if (c.block_size > 0) record["block_size"] = c.block_size;
  if (c.precision == Precision::kF32) record["precision"] = "f32";
  if (c.isa) record["forced_isa"] = IsaName(*c.isa);
  return record;
}

}  // namespace attnd::bench
