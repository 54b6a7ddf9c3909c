#include "runtime/partial_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "runtime/error.h"

namespace smolvla {
namespace {

constexpr char kSuffix[] = ".partial";
constexpr size_t kWrite = size_t{8} << 20;
constexpr int kTries = 100;

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() &&
           text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Whether the open file is still the one of that name.
bool is_named(int fd, const std::string& path) {
    struct stat open_file, named;
    return fstat(fd, &open_file) == 0 && lstat(path.c_str(), &named) == 0 &&
           open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

// Removes the partial files of `path` whose writers are gone. What fails here, waits.
void sweep(const std::string& folder, const std::string& path) {
    const std::string stem = path.substr(path.rfind('/') + 1) + ".";  // npos + 1 is 0
    DIR* listing = opendir(folder.c_str());
    if (!listing) return;
    while (const dirent* entry = readdir(listing)) {
        const std::string name = entry->d_name;
        if (name.compare(0, stem.size(), stem) != 0 || !ends_with(name, kSuffix)) continue;
        const std::string partial = folder + "/" + name;
        const int fd = open(partial.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 && is_named(fd, partial)) unlink(partial.c_str());
        close(fd);
    }
    closedir(listing);
}

}  // namespace

PartialFile::PartialFile(const std::string& path) : path_(path), folder_(folder_of(path)) {
    sweep(folder_, path_);
    std::random_device random;
    for (int i = 0; i < kTries; ++i) {
        char word[17];
        std::snprintf(word, sizeof word, "%08x%08x", random(), random());
        partial_ = path_ + "." + word + kSuffix;
        fd_ = open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd_ < 0 && errno == EEXIST) continue;
        if (fd_ < 0) refuse("cannot make", errno);
        // Between the two calls another writer's sweep may have taken it for an orphan.
        if (flock(fd_, LOCK_EX | LOCK_NB) == 0 && is_named(fd_, partial_)) return;
        unlink(partial_.c_str());
        close(fd_);
    }
    fd_ = -1;
    refuse("cannot lock", EWOULDBLOCK);
}

PartialFile::~PartialFile() {
    if (fd_ < 0) return;
    unlink(partial_.c_str());
    close(fd_);
}

void PartialFile::reserve(uint64_t bytes) {
    if (fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) == 0) return;
    if (errno == ENOSPC || errno == EFBIG || errno == EDQUOT) refuse("no room for", errno);
    // Others: the file system cannot; write() will say so if there is no room.
}

void PartialFile::write(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t done = ::write(fd_, from, std::min(bytes, kWrite));
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) refuse("cannot write", done < 0 ? errno : ENOSPC);
        from += done;
        bytes -= static_cast<size_t>(done);
    }
}

void PartialFile::commit() {
    if (fsync(fd_) != 0) refuse("cannot write", errno);
    if (rename(partial_.c_str(), path_.c_str()) != 0) refuse("cannot name", errno);
    close(fd_);
    fd_ = -1;
    const int folder = open(folder_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    if (folder < 0) return;  // the file is there; only the moment of its survival is not known
    fsync(folder);
    close(folder);
}

void PartialFile::refuse(const char* what, int error) {
    fail(ErrorKind::backend, "%s %s: %s", what, path_.c_str(), std::strerror(error));
}

}  // namespace smolvla
