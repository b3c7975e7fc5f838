// The answers of a call on .npy files: memory for them, the files that they are
// written to, and the files that they are compared with.
#ifndef ATTND_CLIENT_ATTNCTL_ANSWERS_H_
#define ATTND_CLIENT_ATTNCTL_ANSWERS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/option_flags.h"
#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

// One tensor of an answer.
struct Answer {
  const char* name;
  FileFlag file = {};      // written to this file
  FileFlag expected = {};  // compared with this file
  client::DataType dtype = client::DataType::kF32;
  std::vector<int64_t> shape = {};
  std::shared_ptr<std::byte[]> memory = {};
  size_t size_bytes = 0;

  // Allocates memory for the answer. The system provides a page only when it is
  // written to, so an answer that the server refuses to make costs nothing.
  // RESOURCE_EXHAUSTED if there is not so much memory.
  absl::Status Allocate();
  // Returns OK if the answer fits a message that the client receives.
  absl::Status CheckFitsMessage(int64_t max_message_bytes) const;

  std::span<std::byte> bytes() const { return {memory.get(), size_bytes}; }
  client::Elements elements() { return {dtype, bytes()}; }
};

// What a command reports about its call.
struct AnswerReport {
  client::ExecutionStats stats;
  absl::Duration elapsed;
  double max_error = 0;
  bool json = false;
};

// Adds the flags --max-error and --json.
void AddReportFlags(CLI::App& command, AnswerReport& report);

// What --help says about files that are pipes.
inline constexpr char kPipesHelp[] =
    "A file may be a pipe, <(...) or /dev/stdin. Files are read in the order "
    "of\n"
    "the flags above, then --bias and --mask. Answers may be written to a pipe "
    "or\n"
    "to /dev/stdout. If one is written to standard output, the report goes to\n"
    "standard error.\n";

// Returns kUsage if an answer would overwrite another one, or a file that an
// answer is compared with. If an answer goes to standard output, moves the
// report to standard error. Call this before anything is read or sent.
ExitCode CheckFiles(const std::vector<Answer>& answers, Session& session);

// Writes the answers to their files, compares them, and prints the report.
ExitCode Finish(const std::vector<Answer>& answers, const AnswerReport& report,
                Session& session);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ANSWERS_H_
