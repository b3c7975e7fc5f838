#include "bench/child_process.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <thread>

namespace attnd::bench {
namespace {

constexpr std::chrono::seconds kStartLimit{60};
constexpr std::chrono::milliseconds kPoll{5};

}  // namespace

TempFolder::TempFolder() {
  std::string pattern =
      (std::filesystem::temp_directory_path() / "attnd-bench-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) {
    throw std::runtime_error("cannot make a folder like " + pattern);
  }
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

ChildProcess::ChildProcess(std::vector<std::string> command,
                           const std::string& address_file) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (std::string& argument : command) argv.push_back(argument.data());
  argv.push_back(nullptr);
  // Only functions that are safe in a copy of one thread may run between fork
  // and exec.
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    execv(argv.front(), argv.data());
    _exit(127);
  }
  if (pid_ < 0) throw std::runtime_error("cannot fork");
  const auto limit = std::chrono::steady_clock::now() + kStartLimit;
  while (!std::filesystem::exists(address_file)) {
    int status = 0;
    const bool ended = waitpid(pid_, &status, WNOHANG) == pid_;
    if (ended || std::chrono::steady_clock::now() > limit) {
      if (!ended) End();
      throw std::runtime_error(
          command.front() +
          (ended ? " ended at its start" : " is not ready within a minute"));
    }
    std::this_thread::sleep_for(kPoll);
  }
  std::ifstream file(address_file);
  for (std::string line; std::getline(file, line);) addresses_.push_back(line);
}

ChildProcess::~ChildProcess() { End(); }

void ChildProcess::End() const {
  kill(pid_, SIGTERM);
  waitpid(pid_, nullptr, 0);
}

int64_t ChildProcess::StatusBytes(const std::string& name) const {
  std::ifstream file("/proc/" + std::to_string(pid_) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name + ":")) {
      return std::stoll(line.substr(name.size() + 1)) *
             1024;  // the number is in kB
    }
  }
  throw std::runtime_error("/proc/PID/status of a child process has no " +
                           name);
}

void ChildProcess::ResetPeak() const {
  std::ofstream file("/proc/" + std::to_string(pid_) + "/clear_refs");
  file << "5";
  if (!file.flush()) throw std::runtime_error("cannot reset a child's VmHWM");
}

}  // namespace attnd::bench
