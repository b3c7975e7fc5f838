// Measures how long an answer of MemoryEstimate takes to find, apart from its
// message. Each benchmark asks hundreds of different questions.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "cost/largest_fit.h"

namespace attnd {
namespace {

struct Question {
  CostQuery query;
  CostLimits limits;
};

// Returns questions about all transports, types, shapes of heads and budgets.
std::vector<Question> Questions(bool decode) {
  const std::pair<int64_t, int64_t> heads[] = {
      {1, 1}, {32, 32}, {32, 8}, {40, 1}};
  AttentionOptions biased{.bias = TensorSpec{.shape = {2, 2}},
                          .mask = TensorSpec{DataType::kBool, {2, 2}}};
  biased.causal = Causal::kBottomRight;
  if (decode) biased.bias->shape[0] = biased.mask->shape[0] = 1;
  std::vector<Question> questions;
  for (const Transport transport :
       {Transport::kInline, Transport::kStream, Transport::kSharedMemory}) {
    for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
      for (const auto& [q_heads, kv_heads] : heads) {
        for (const int64_t head_dim : {1, 64, 128}) {
          for (const int budget_bits : {20, 24, 27, 33, 40, 62}) {
            for (const AttentionOptions& options :
                 {AttentionOptions(), biased}) {
              Question question;
              question.limits.budget_bytes = int64_t{1} << budget_bits;
              // A budget above any memory finds the largest numbers.
              if (budget_bits == 62) {
                question.limits.max_message_bytes = int64_t{1} << 62;
                question.limits.max_in_flight = int64_t{1} << 62;
              }
              CostQuery& query = question.query;
              query.transport = transport;
              query.dtype = dtype;
              query.num_q_heads.value = q_heads;
              query.num_kv_heads.value = kv_heads;
              query.head_dim.value = head_dim;
              query.threads.value = 16;
              query.options = options;
              query.machine = MachineInfo::Detect();
              if (decode) query.q_len.value = 1;
              questions.push_back(question);
            }
          }
        }
      }
    }
  }
  return questions;
}

// Reports the median and the largest time of all questions. The time of a
// question is the shortest of several, because other programs on the machine
// can only make it longer.
template <typename Answer>
void Measure(benchmark::State& state, const std::vector<Question>& questions,
             const Answer& answer) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> us(questions.size(), 1e9);
  for ([[maybe_unused]] auto _ : state) {
    for (size_t i = 0; i < questions.size(); ++i) {
      const Clock::time_point start = Clock::now();
      answer(questions[i]);
      const std::chrono::duration<double, std::micro> time =
          Clock::now() - start;
      us[i] = std::min(us[i], time.count());
    }
  }
  std::sort(us.begin(), us.end());
  state.counters["median_us"] = us[us.size() / 2];
  state.counters["worst_us"] = us.back();
}

void Goal(benchmark::State& state, EstimateGoal goal, bool decode) {
  std::vector<Question> questions = Questions(decode);
  for (Question& question : questions) {
    if (goal == EstimateGoal::kMaxSeqLen) continue;
    question.query.seq_len.value = 2;  // the axes of the bias
    if (decode) question.query.kv_len.value = 2;
  }
  Measure(state, questions, [goal](const Question& question) {
    const auto answer = FindLargestFit(question.query, goal, question.limits);
    if (!answer.ok()) std::abort();
    benchmark::DoNotOptimize(answer->size);
  });
}

void Estimate(benchmark::State& state) {
  std::vector<Question> questions = Questions(/*decode=*/false);
  for (Question& question : questions) {
    question.query.seq_len.value = 2;
    if (!question.query.SetDefaults().ok()) std::abort();
  }
  Measure(state, questions, [](const Question& question) {
    const auto cost = CostOf(question.query);
    if (!cost.ok()) std::abort();
    benchmark::DoNotOptimize(
        CheckLimits(question.query, *cost, question.limits));
  });
}

BENCHMARK_CAPTURE(Goal, max_seq_len, EstimateGoal::kMaxSeqLen, false);
BENCHMARK_CAPTURE(Goal, max_seq_len_of_decode, EstimateGoal::kMaxSeqLen, true);
BENCHMARK_CAPTURE(Goal, max_batch, EstimateGoal::kMaxBatch, false);
BENCHMARK_CAPTURE(Goal, max_concurrency, EstimateGoal::kMaxConcurrency, false);
BENCHMARK(Estimate);

}  // namespace
}  // namespace attnd

BENCHMARK_MAIN();
