// The flags --max and --budget of attnctl estimate, which find the largest
// problem that fits into a budget, and what they print.
#ifndef ATTND_CLIENT_ATTNCTL_LARGEST_PROBLEM_H_
#define ATTND_CLIENT_ATTNCTL_LARGEST_PROBLEM_H_

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/status.h"
#include "client/types.h"

namespace attnd::attnctl {

// Adds --max, which sets the goal, and --budget. Returns the option --max.
CLI::Option* AddLargestProblemFlags(CLI::App& command,
                                    client::MemoryEstimateOptions& options);

// Returns INVALID_ARGUMENT with the name of a flag if `options` have the size
// that their goal searches, or if they need a budget (`offline`) and have none.
absl::Status CheckLargestProblem(const client::MemoryEstimateOptions& options,
                                 bool offline);

// Returns the name of the goal's answer in MemoryEstimateResponse, such as
// "max_seq_len". The goal must not be kEstimate.
std::string AnswerField(client::EstimateGoal goal);

// Says how large the largest problem is, and what stops a larger one.
// `estimate` is the answer to `options`, which must have a goal.
std::string LargestProblemSentence(const client::MemoryEstimateOptions& options,
                                   const client::MemoryEstimate& estimate);

// Returns the options of the problem that `estimate` describes: the largest
// one, or the smallest one if not even that fits.
client::MemoryEstimateOptions LargestProblem(
    client::MemoryEstimateOptions options,
    const client::MemoryEstimate& estimate);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_LARGEST_PROBLEM_H_
