#!/bin/sh
# Prints the Python that the set-up will use. If Python, the C++ compiler or cmake is missing or
# unsuitable, says so instead, one sentence each on stderr, and exits with 1.
# Environment: PYTHON, CXX name other programs than those found first.

failed=0
complain() { echo "error: $1" >&2; failed=1; }

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

python_is_suitable() {
    case $(python_version "$1") in 3.8 | 3.9 | 3.10 | 3.11) return 0 ;; *) return 1 ;; esac
}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.10 python3.9 python3.8 python3 python}; do
        if python_is_suitable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

python=$(find_python)
if [ -z "$python" ]; then
    complain "Python 3.8 to 3.11 is needed, but ${PYTHON:-every python on the PATH} is another version or missing; \
install one (Debian 12: apt-get install python3.11 python3.11-venv) and, if it is not on the PATH, name it: \
make PYTHON=/path/to/python3.11 ..."
elif ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    complain "$python cannot make virtual environments because its modules venv and ensurepip are missing; \
install them (Debian: apt-get install python$(python_version "$python")-venv)"
fi

works=no
for compiler in ${CXX:-c++ g++ clang++}; do
    if command -v "$compiler" >/dev/null; then works=yes; fi
done
if [ $works = no ]; then
    complain "a C++ compiler is needed to build Horovod, but none of ${CXX:-c++, g++, clang++} was found; \
install one (Debian: apt-get install g++)"
fi

# Horovod 0.28.1 asks for features of 3.18, and its CMake files are refused by 4.
hint="install one (Debian 12 and 13: apt-get install cmake, elsewhere: pip install 'cmake<4')"
if ! command -v cmake >/dev/null; then
    complain "cmake 3.18 to 3.31 is needed to build Horovod, but none was found; $hint"
else
    version=$(cmake --version)
    version=${version#cmake version }
    major=${version%%.*}
    minor=${version#*.}
    minor=${minor%%.*}
    if ! [ "$major" -eq 3 ] 2>/dev/null || ! [ "$minor" -ge 18 ] 2>/dev/null; then
        complain "cmake 3.18 to 3.31 is needed to build Horovod, but $(command -v cmake) is $major.$minor; $hint"
    fi
fi

if [ $failed = 0 ]; then echo "$python"; fi
exit $failed
