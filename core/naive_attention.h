// The baseline that the Benchmark call compares the kernels with: attention
// that keeps all scores in memory, without tiling and packing. To be a fair
// comparison, it runs on all worker threads, and the compiler vectorises it for
// the machine's instruction set.
#ifndef ATTND_CORE_NAIVE_ATTENTION_H_
#define ATTND_CORE_NAIVE_ATTENTION_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/attention_engine.h"

namespace attnd {

// Returns the bytes of the score matrices, which hold
// num_q_heads * q_len * kv_len floats for each batch entry. Returns the largest
// int64 if the number does not fit.
int64_t NaiveScoreBytes(const AttentionProblem& problem);

// Computes `problem` on the workers of `engine` and waits for the end. Takes
// the same inputs and writes the same outputs as AttentionEngine::Run. Requires
// F32 tensors in BHSD, a batch whose entries are alike (Visibility::uniform),
// and no options other than scale, temperature, causal, windows, query_offsets
// and lse, because it would ignore others without an error. Returns
// RESOURCE_EXHAUSTED if there is not enough memory for the scores. A worker of
// `engine` must not call this.
absl::StatusOr<RunStats> NaiveAttention(AttentionEngine& engine,
                                        const AttentionProblem& problem,
                                        const AttentionBuffers& buffers,
                                        const StopSignal* stop = nullptr);

}  // namespace attnd

#endif  // ATTND_CORE_NAIVE_ATTENTION_H_
