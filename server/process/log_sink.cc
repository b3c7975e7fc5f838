#include "server/process/log_sink.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/printable.h"
#include "server/log/log_fields.h"
#include "spdlog/details/log_msg.h"
#include "spdlog/pattern_formatter.h"

namespace attnd::server {
namespace {

constexpr size_t kMaxTextBytes = 1024;
constexpr size_t kMaxPendingBytes = 1 << 20;
// How long Close and flush wait. This is short, so that a process ends within a
// second even if nobody reads its stderr.
constexpr std::chrono::milliseconds kMaxWait{500};

std::atomic<int64_t> all_dropped_lines{0};

// Formats lines of JSON around the members that replace the text of a message.
// The time is that of RFC 3339.
std::unique_ptr<spdlog::formatter> JsonFormatter() {
  return std::make_unique<spdlog::pattern_formatter>(
      R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l",%v})",
      spdlog::pattern_time_type::utc);
}

std::unique_ptr<spdlog::formatter> NewFormatter() {
  if (GetLogFormat() == LogFormat::kJson) return JsonFormatter();
  return std::make_unique<spdlog::pattern_formatter>();
}

// Returns the line of the log for `message`, with `text` in place of its text.
// `text` must be printable.
std::string Format(spdlog::formatter& formatter,
                   const spdlog::details::log_msg& message,
                   absl::string_view text) {
  std::string members;
  if (GetLogFormat() == LogFormat::kJson && !IsFromLogFields(message)) {
    members = absl::StrCat("\"message\":", JsonString(text));
    text = members;
  }
  spdlog::details::log_msg changed = message;
  changed.payload = spdlog::string_view_t(text.data(), text.size());
  spdlog::memory_buf_t line;
  formatter.format(changed, line);
  return {line.data(), line.size()};
}

// Writes all of `text`, and waits for the reader as long as necessary. Returns
// the part that could not be written because `fd` is closed, has no reader any
// more, or has no space left.
absl::string_view Unwritten(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written > 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (written < 0 && errno == EAGAIN) {
      // Another process that shares `fd` made it non-blocking.
      pollfd polled{.fd = fd, .events = POLLOUT, .revents = 0};
      poll(&polled, 1, -1);
    } else if (written == 0 || errno != EINTR) {
      break;
    }
  }
  return text;
}

}  // namespace

struct LogSink::State {
  explicit State(int descriptor) : fd(descriptor) {}

  // Returns a line that says how many are missing. Only the thread of the sink
  // calls it.
  std::string DroppedLine(int64_t lines) {
    const std::string text = absl::StrCat(
        lines, " lines were dropped because stderr did not accept them");
    return Format(*formatter,
                  spdlog::details::log_msg("attnd", spdlog::level::warn, text),
                  text);
  }

  // Waits for at most kMaxWait until all lines are written. Returns whether
  // they are.
  bool WaitWritten(std::unique_lock<std::mutex>& lock) {
    return changed.wait_for(lock, kMaxWait,
                            [this] { return pending.empty() && !writing; });
  }

  const int fd;
  // For the line about dropped lines.
  const std::unique_ptr<spdlog::formatter> formatter = NewFormatter();

  std::mutex mutex;
  std::condition_variable changed;
  std::string pending;  // whole lines
  int64_t dropped_lines = 0;
  bool writing = false;
  bool closed = false;
};

int64_t DroppedLogLines() { return all_dropped_lines; }

LogSink::LogSink(int fd)
    : spdlog::sinks::base_sink<std::mutex>(NewFormatter()),
      state_(std::make_shared<State>(fd)),
      thread_([state = state_] { Write(*state); }) {}

LogSink::~LogSink() { Close(); }

void LogSink::Close() {
  if (!thread_.joinable()) return;
  std::unique_lock lock(state_->mutex);
  const bool written = state_->WaitWritten(lock);
  // From now on the thread begins no other write.
  state_->closed = true;
  lock.unlock();
  state_->changed.notify_all();
  if (written) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void LogSink::sink_it_(const spdlog::details::log_msg& message) {
  const absl::string_view text(message.payload.data(), message.payload.size());
  const bool cut = text.size() > kMaxTextBytes;
  const std::string line =
      IsFromLogFields(message)
          ? Format(*formatter_, message, text)
          : Format(*formatter_, message,
                   absl::StrCat(Printable(text.substr(0, kMaxTextBytes)),
                                cut ? "..." : ""));
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->closed) return;
    if (state_->pending.size() + line.size() > kMaxPendingBytes) {
      ++state_->dropped_lines;
      ++all_dropped_lines;
      return;
    }
    state_->pending += line;
  }
  state_->changed.notify_all();
}

void LogSink::flush_() {
  std::unique_lock lock(state_->mutex);
  state_->WaitWritten(lock);
}

void LogSink::Write(State& state) {
  std::string batch;
  std::unique_lock lock(state.mutex);
  for (;;) {
    state.changed.wait(lock,
                       [&] { return state.closed || !state.pending.empty(); });
    if (state.closed) return;
    batch.swap(state.pending);
    // These lines came when `batch` was full, so the line that counts them
    // follows `batch`.
    const int64_t dropped = std::exchange(state.dropped_lines, 0);
    state.writing = true;
    lock.unlock();
    const absl::string_view rest = Unwritten(state.fd, batch);
    int64_t lost = std::count(rest.begin(), rest.end(), '\n');
    all_dropped_lines += lost;
    if (dropped > 0 &&
        !Unwritten(state.fd, state.DroppedLine(dropped)).empty()) {
      lost += dropped;
    }
    batch.clear();
    lock.lock();
    state.dropped_lines += lost;
    state.writing = false;
    state.changed.notify_all();
  }
}

}  // namespace attnd::server
