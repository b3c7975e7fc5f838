// The baseline that the Benchmark call compares with: attention that keeps all
// scores in memory. To be a fair comparison it uses all worker threads, and the
// compiler vectorises it for the machine's instruction set. It has no tiling
// and no packing.
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
// and lse: others would be left out silently. Allocates the scores: returns
// RESOURCE_EXHAUSTED if there is not enough memory. Must not be called from a
// worker.
absl::StatusOr<RunStats> NaiveAttention(AttentionEngine& engine,
                                        const AttentionProblem& problem,
                                        const AttentionBuffers& buffers,
                                        const StopSignal* stop = nullptr);

}  // namespace attnd

#endif  // ATTND_CORE_NAIVE_ATTENTION_H_
